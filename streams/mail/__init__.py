"""Mail to customers: texts, addresses, the mail server, and the folder in place of one."""
