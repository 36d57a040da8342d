"""The commands, one module a subject: each parses options, calls one public function and prints."""
