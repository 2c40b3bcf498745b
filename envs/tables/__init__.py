"""Tables in files: CSV and Parquet files as columns, what a column holds, and numbers that look like errors."""
