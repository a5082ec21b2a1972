"""What snapfs is measured against, and how."""
