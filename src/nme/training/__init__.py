"""Training of one member, and continuation of a stopped job."""
