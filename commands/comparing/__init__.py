"""`bench`: from its options to a comparison, in this process or on every kind of machine of a cluster."""
