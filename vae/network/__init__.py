"""The network itself: modules without state, and how one call of them is executed. Knows no plan and no job."""
