"""Offline on-policy distillation: shards, engines, objectives, training."""
