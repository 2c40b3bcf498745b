"""The random streams of an evaluation: each is of one kind of draw, and draws the same for all policies."""

VALIDATION_MARKET, VALIDATION_SEASON = 1, 2
CALIBRATION_SEASON, FEE_SEASONS = 3, 4
REGRESSION_CUSTOMERS, POSTERIOR_DRAWS = 5, 6
TEST_MARKET, TUNING_MARKET, TEST_SEASONS = 11, 12, 13
