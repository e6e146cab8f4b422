"""PostgreSQL itself: sessions, errors, names, locks, migrations, the vector extension."""
