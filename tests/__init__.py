import pytest

# Otherwise an assert in these modules would fail without saying what the values were.
pytest.register_assert_rewrite("tests.support")
