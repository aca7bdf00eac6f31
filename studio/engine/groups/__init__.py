"""Which channels must be cut together, found from the graph alone; and the cutting.

`trace` labels every axis of every value with atoms; `find_groups` collects the atoms that cut the same
weights alike into groups; `cut` removes atoms physically; `masked` makes the model that the cut one
must equal.
"""
