"""Records on disk to CSV and HTML. It knows the record's schema and nothing else of the harness."""
