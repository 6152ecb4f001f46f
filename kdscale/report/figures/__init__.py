"""Which drawings a report has, from what is known of a study."""
