"""The reports of a comparison: a Markdown table, and an HTML page with figures and prompts."""
