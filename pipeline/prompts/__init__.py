"""From a user's files and data sets to shards of prompts.

`files` and `data_sets` read rows as they are written, `sources` checks each and refuses what cannot be used, `sameness`
says which prompts are the same, `collect` de-duplicates, splits and spreads over buckets.
"""
