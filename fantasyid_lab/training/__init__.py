"""Training: FantasyID-nano from synthetic people, stage by stage; the 5B's identity modules from a folder of clips.

`python -m fantasyid_lab.training STAGE|all --out DIR`; what the stages do stands in docs/training.md. One process,
many and FSDP are accelerate's business: start the same command with `accelerate launch`.
"""
