"""Partitioned graph embedding: from an edge list to embeddings of every entity."""
