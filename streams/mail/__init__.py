"""Mail: what customers are told, and how it leaves the system."""
