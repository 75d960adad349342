"""Models as folders and as modules: what is recorded of one, how it is opened, how sequences are packed for it.

`record` pins and fingerprints, `lineage` says whose responses a checkpoint learned from, `student` is an open model,
`output_layer` its last matrix alone, `packing` lays sequences out. Nothing here trains or writes responses.
"""
