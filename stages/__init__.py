"""The pipeline's scripts: one for each stage of dvc.yaml."""
