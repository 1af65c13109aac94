"""Analytics: what happened to orders, per day, product and country.

Order events are keyed by order, so each partition sums up its own orders only. Answers add the partitions up.
"""

from typing import Final

from domain.analytics import AnalyticsState, Figures, ProductFigures
from engine import KeyCodec, Table

NO_CURRENCY: Final = "---"
"""What stands for the currency of orders that were refused: they have none."""
STATE_KEY: Final = "state"


def _encode(key: tuple[str, str]) -> bytes:
    return (key[0] + key[1]).encode()


def _decode(raw: bytes) -> tuple[str, str]:
    return raw[:-3].decode(), raw[-3:].decode()


def _decode_day(raw: bytes) -> tuple[str, str]:
    return raw[:10].decode(), raw[10:].decode()


# (what, currency): a currency has three bytes, a day ten characters, so neither needs a separator.
_BY_CURRENCY: KeyCodec[tuple[str, str]] = KeyCodec(_encode, _decode)
_BY_DAY: KeyCodec[tuple[str, str]] = KeyCodec(_encode, _decode_day)

ANALYTICS_TOTALS: Table[str, Figures] = Table("analytics-totals", Figures, help="orders in figures, by currency")
ANALYTICS_DAYS: Table[tuple[str, str], Figures] = Table(
    "analytics-days", Figures, _BY_DAY, help="orders in figures, by day (business time, UTC) and currency"
)
ANALYTICS_PRODUCTS: Table[tuple[str, str], ProductFigures] = Table(
    "analytics-products", ProductFigures, _BY_CURRENCY, help="orders of each product, by product and currency"
)
ANALYTICS_COUNTRIES: Table[tuple[str, str], Figures] = Table(
    "analytics-countries", Figures, _BY_CURRENCY, help="orders in figures, by country and currency"
)
ANALYTICS_STATE: Table[str, AnalyticsState] = Table(
    "analytics-state", AnalyticsState, help="each partition's newest day, and its cancellations by reason"
)
