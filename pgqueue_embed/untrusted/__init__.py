"""Foreign texts and files, checked and bounded before they are used or shown."""
