"""Load on a service, as its clients see it: by users in closed loops, and at a rate.  Speaks the wire, knows nothing of ours."""
