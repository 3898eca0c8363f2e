"""What `engines.validate` measures and how it judges: one idea a file, mostly figures in, figures out."""
