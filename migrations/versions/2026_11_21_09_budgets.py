"""Budgets that warn, that only warn, that are raised for a time, and that are the house's.

`reserve` heeds them from the next revision on. The release before keeps working.
"""

from alembic import op

revision = "2026_11_21_09_budgets"
down_revision = "2026_11_21_08_webhooks"

ROLE = "image_gateway_app"

BUDGET = """
ALTER TABLE budget
    ALTER COLUMN tenant_id DROP NOT NULL,
    ADD COLUMN enforcement TEXT DEFAULT 'hard' NOT NULL,
    ADD COLUMN alert_percents SMALLINT[] DEFAULT '{50,80,100}' NOT NULL,
    ADD COLUMN raised_to_nano BIGINT,
    ADD COLUMN raised_until TIMESTAMP WITH TIME ZONE,
    ADD COLUMN time_zone TEXT,
    ADD COLUMN division INTEGER DEFAULT 0 NOT NULL,
    ADD CONSTRAINT budget_enforcement CHECK (enforcement IN ('hard', 'soft')),
    ADD CONSTRAINT budget_alert_percents CHECK (cardinality(alert_percents) <= 10
        AND 1 <= ALL (alert_percents) AND 100 >= ALL (alert_percents)),
    ADD CONSTRAINT budget_raise CHECK ((raised_to_nano IS NULL) = (raised_until IS NULL)
        AND raised_to_nano BETWEEN 0 AND 1000000000000000000),
    ADD CONSTRAINT budget_house CHECK ((tenant_id IS NULL) = (time_zone IS NOT NULL)
        AND (tenant_id IS NOT NULL OR (api_key_id IS NULL AND user_id IS NULL AND livemode)))
"""

# A shard has a part of the limit; `allotted_of_nano` says of which limit, so that a part of one that
# is not in force any more is never taken for its own; `allotted_division`, since when.
BUDGET_PERIOD = """
ALTER TABLE budget_period
    ALTER COLUMN tenant_id DROP NOT NULL,
    ADD COLUMN shard SMALLINT DEFAULT 0 NOT NULL,
    ADD COLUMN allotted_nano BIGINT,
    ADD COLUMN allotted_of_nano BIGINT,
    ADD COLUMN allotted_division INTEGER,
    ADD COLUMN soft_nano BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN alerted_percent SMALLINT DEFAULT 0 NOT NULL,
    ADD COLUMN alerted_of_nano BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN exceeded_of_nano BIGINT,
    DROP CONSTRAINT budget_period_start,
    ADD CONSTRAINT budget_period_start UNIQUE (budget_id, period_start, shard),
    ADD CONSTRAINT budget_period_shard CHECK (shard = 0 OR tenant_id IS NULL),
    ADD CONSTRAINT budget_period_allotted
        CHECK (allotted_nano >= 0 AND allotted_of_nano >= 0 AND soft_nano >= 0),
    ADD CONSTRAINT budget_period_told CHECK (alerted_of_nano >= 0 AND exceeded_of_nano >= 0)
"""

LIMIT_AT = """
CREATE FUNCTION limit_at(p_budget budget, p_at timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_budget.raised_until > p_at
        THEN greatest(p_budget.limit_nano, p_budget.raised_to_nano) ELSE p_budget.limit_nano END
$$
"""

USD = """
CREATE FUNCTION usd(p_nano bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT (p_nano / 1000000000)::text || '.' || lpad((p_nano % 1000000000)::text, 9, '0')
$$
"""

INSTANT = """
CREATE FUNCTION instant(p_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN isfinite(p_at)
        THEN to_char(p_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END
$$
"""

NOTE_EVENT = """
CREATE FUNCTION note_budget_event(
    p_type text, p_budget budget, p_period budget_period, p_spent bigint, p_held bigint,
    p_limit bigint, p_percent int
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO event (tenant_id, livemode, type, data)
    VALUES (p_budget.tenant_id, p_budget.livemode, p_type, jsonb_build_object(
        'budget_id', p_budget.id::text,
        'owner', CASE WHEN p_budget.tenant_id IS NULL THEN 'house'
            WHEN p_budget.api_key_id IS NOT NULL THEN 'key'
            WHEN p_budget.user_id IS NOT NULL THEN 'user' ELSE 'tenant' END,
        'api_key_id', p_budget.api_key_id, 'user_id', p_budget.user_id,
        'window', p_budget.period, 'enforcement', p_budget.enforcement,
        'limit_usd', usd(p_limit), 'spent_usd', usd(p_spent), 'held_usd', usd(p_held),
        'period_start', instant(p_period.period_start),
        'resets_at', instant(p_period.period_end)
    ) || CASE WHEN p_percent IS NULL THEN '{}'::jsonb
        ELSE jsonb_build_object('threshold_percent', p_percent) END)
$$
"""

# Once per period and threshold, and anew once the limit is higher than the one that was told of; a
# jump over several tells of each of them. Returns the period as it is now.
ALERT_REACHED = """
CREATE FUNCTION alert_reached(
    p_period budget_period, p_spent bigint, p_held bigint, p_at timestamptz
) RETURNS budget_period LANGUAGE plpgsql AS $$
DECLARE
    b budget;
    v_limit bigint;
    v_percent smallint;
BEGIN
    SELECT * INTO b FROM budget WHERE id = p_period.budget_id;
    v_limit := limit_at(b, p_at);
    IF b.removed_at IS NOT NULL OR v_limit = 0 THEN
        RETURN p_period;
    END IF;
    IF v_limit > p_period.alerted_of_nano THEN
        p_period.alerted_percent := 0;
    END IF;
    FOR v_percent IN SELECT u.percent FROM unnest(b.alert_percents) AS u(percent) ORDER BY 1 LOOP
        -- Without the product of the whole limit, which would not fit.
        IF v_percent > p_period.alerted_percent
            AND p_spent >= v_limit / 100 * v_percent + (v_limit % 100 * v_percent + 99) / 100
        THEN
            p_period.alerted_percent := v_percent;
            p_period.alerted_of_nano := v_limit;
            PERFORM note_budget_event('budget.threshold_reached', b, p_period, p_spent, p_held,
                v_limit, v_percent);
        END IF;
    END LOOP;
    RETURN p_period;
END $$
"""

# In the commit that spends the money. The house's shards are looked at together, by the sweeper.
ALERT = """
CREATE FUNCTION alert_budget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN alert_reached(NEW, NEW.spent_nano, NEW.held_nano, clock_timestamp());
END $$
"""
ALERT_TRIGGER = """
CREATE TRIGGER budget_period_alert BEFORE UPDATE ON budget_period FOR EACH ROW
WHEN (NEW.spent_nano > OLD.spent_nano AND NEW.tenant_id IS NOT NULL)
EXECUTE FUNCTION alert_budget()
"""

# Where a shard may have used more than its part, the others' parts are not what is left: the limit
# must be divided anew. A soft budget lets any shard do so, and a real cost above its hold does.
BEGIN_DIVISION = (
    """
CREATE FUNCTION begin_division() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'budget' THEN
        NEW.division := OLD.division + 1;
    ELSE
        UPDATE budget SET division = division + 1 WHERE id = NEW.budget_id;
    END IF;
    RETURN NEW;
END $$
""",
    """
CREATE TRIGGER budget_division BEFORE UPDATE ON budget FOR EACH ROW
WHEN (NEW.enforcement <> OLD.enforcement)
EXECUTE FUNCTION begin_division()
""",
    """
CREATE TRIGGER budget_period_division AFTER UPDATE ON budget_period FOR EACH ROW
WHEN (NEW.breach_nano > OLD.breach_nano AND NEW.tenant_id IS NULL)
EXECUTE FUNCTION begin_division()
""",
)

ALERT_HOUSE = """
CREATE FUNCTION alert_house_budgets() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, public, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_budget bigint;
    v_spent bigint;
    v_held bigint;
    p budget_period;
BEGIN
    FOR v_budget IN SELECT b.id FROM budget b WHERE b.tenant_id IS NULL ORDER BY b.id LOOP
        -- What was spent shortly before a period ended, or is settled after it, is told of too.
        FOR p IN
            SELECT * FROM budget_period x
            WHERE x.budget_id = v_budget AND x.period_start <= v_now
                AND v_now < x.period_end + interval '1 day' AND x.shard = 0
            ORDER BY x.period_start FOR UPDATE
        LOOP
            SELECT sum(x.spent_nano), sum(x.held_nano) INTO v_spent, v_held FROM budget_period x
            WHERE x.budget_id = v_budget AND x.period_start = p.period_start;
            p := alert_reached(p, v_spent, v_held, least(v_now, p.period_end));
            UPDATE budget_period SET
                alerted_percent = p.alerted_percent, alerted_of_nano = p.alerted_of_nano
            WHERE id = p.id AND (alerted_percent, alerted_of_nano)
                <> (p.alerted_percent, p.alerted_of_nano);
        END LOOP;
    END LOOP;
END $$
"""


def upgrade() -> None:
    """Add the columns, and what tells of budgets that are nearly used up."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in (
        BUDGET,
        BUDGET_PERIOD,
        LIMIT_AT,
        USD,
        INSTANT,
        NOTE_EVENT,
        ALERT_REACHED,
        ALERT,
    ):
        op.execute(statement)
    op.execute(ALERT_TRIGGER)
    for statement in (*BEGIN_DIVISION, ALERT_HOUSE):
        op.execute(statement)
    op.execute("REVOKE ALL ON FUNCTION alert_house_budgets() FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION alert_house_budgets() TO {ROLE}")
    op.execute(
        "GRANT UPDATE (enforcement, alert_percents, raised_to_nano, raised_until, time_zone)"
        f" ON budget TO {ROLE}"
    )
