"""The files: one module for each kind of shard, and the store that makes every file once.

`shards` writes and reads Parquet and states the alignment of tokens; `prompts`, `rollouts`, `grades` and `scores` own a
kind each (schema, row type, table, reader, VERSION); `bucket` is the files of one bucket. `store`, `manifest`,
`garbage` and `hashing` know finished files by fingerprint. Nothing here knows models, engines or training.
"""
