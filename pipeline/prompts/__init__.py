"""From a user's files and data sets to shards of prompts.

`sources` reads one source and refuses what cannot be used, `collect` de-duplicates, splits and spreads over buckets.
"""
