"""The same results as the plain code of the core, sooner. Each function here is tested equal to the plain one."""
