"""What is kept on disk and in memory: tables, partition files, the log, checkpoints."""
