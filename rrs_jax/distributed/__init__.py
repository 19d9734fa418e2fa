"""Devices and processes: the mesh, several processes of one run, and the machine that a process runs on."""
