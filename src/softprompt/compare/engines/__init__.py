"""Where the runs of a comparison take place: on this machine, or on a Ray cluster."""
