"""The ground floor: errors, sizes, files, formats and records, shared by both wings."""
