"""In which order buckets are trained, and by whom: pure Python, no tensors, files or clock."""
