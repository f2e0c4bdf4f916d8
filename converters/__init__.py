"""Where a family's weights come from: rule tables, and the readers and writers of checkpoints."""
