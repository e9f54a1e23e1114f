"""Names and meshes: what splits a named dimension over devices, and the devices, hosts and links that there
are."""
