"""Sources of records and the pipeline that makes batches of them."""
