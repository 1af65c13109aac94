"""A projection made anew beside the running one."""
