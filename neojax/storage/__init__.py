"""Files that do not lie on this machine: buckets of object stores, their paths, locks and local working
copies."""
