"""Statistics, tables and figures that reports and studies share."""
