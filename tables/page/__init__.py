"""The files that the shop adds to the operator's page, or has in the place of the engine's."""
