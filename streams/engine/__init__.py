"""The engine: partition tasks with one unit of work, one store and one transactional commit each."""
