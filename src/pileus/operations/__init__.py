"""What one may do, declared once; the engine that makes routes, documents and commands of it."""
