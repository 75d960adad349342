"""Looking at what was made: the page, its plots, one rollout token by token, and SQL over the shards."""
