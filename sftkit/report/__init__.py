"""What a person looks at outside of the progress of a run."""
