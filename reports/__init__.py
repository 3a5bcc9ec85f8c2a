"""Reports: records on disk become tables, figures and pages."""
