"""Several workers, on one machine or many: messages, links, the coordinator and the workers."""
