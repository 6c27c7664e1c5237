"""Keys led by the tenant; idempotency claims and the operator's budgets in tables of their own."""

from alembic import op

from gateway.db.sql_files import run_script

revision = "2026_11_30_07_tenant_keys"
down_revision = "2026_11_30_06_usage_corrections"

# Functions whose arguments change, and the views that depend on changed columns. They are made
# again from their files after the migrations.
OUTDATED = """
DROP VIEW IF EXISTS
    invariant_break, usage_break, usage_summed, usage_addend, usage_line CASCADE;
DROP FUNCTION IF EXISTS lock_periods(jsonb, timestamptz, int);
DROP FUNCTION IF EXISTS write_held(locked_period[], boolean);
DROP FUNCTION IF EXISTS note_exceeded(locked_period);
DROP FUNCTION IF EXISTS describe_short(locked_period);
DROP FUNCTION IF EXISTS applying_budgets(uuid, uuid, uuid, boolean, text);
DROP FUNCTION IF EXISTS current_periods(bigint, timestamptz, int);
DROP FUNCTION IF EXISTS limit_at(budget, timestamptz);
DROP FUNCTION IF EXISTS note_budget_event(
    text, budget, budget_period, bigint, bigint, bigint, int);
DROP FUNCTION IF EXISTS alert_reached(budget_period, bigint, bigint, timestamptz);
DROP FUNCTION IF EXISTS resolve_reservation(uuid, text, bigint);
DROP TRIGGER IF EXISTS budget_division ON budget;
DROP TRIGGER IF EXISTS budget_period_division ON budget_period;
DROP TRIGGER IF EXISTS budget_period_alert ON budget_period;
DROP TYPE locked_period;
DELETE FROM applied_sql;
"""

# `locked_period`: a budget's period as locked by `reserve`. `shard` is NULL for a tenant's;
# `available_nano` is NULL for a shard without a part of the limit in force.
TYPES = """
CREATE TYPE locked_period AS (
    tenant_id uuid,
    api_key_id uuid,
    user_id uuid,
    livemode boolean,
    shard int,
    id bigint,
    budget_id bigint,
    window_name text,
    period_end timestamptz,
    is_soft boolean,
    division int,
    limit_nano bigint,
    available_nano bigint,
    held_nano bigint,
    is_exceeded boolean
);
CREATE TYPE house_change AS (
    shard int,
    period_id bigint,
    spent_nano bigint,
    released_nano bigint,
    breach_nano bigint
);
"""

HOUSE = """
CREATE TABLE house_budget (
    id bigint GENERATED ALWAYS AS IDENTITY,
    period text NOT NULL,
    limit_nano bigint NOT NULL,
    enforcement text DEFAULT 'hard' NOT NULL,
    alert_percents smallint[] DEFAULT '{50,80,100}' NOT NULL,
    raised_to_nano bigint,
    raised_until timestamptz,
    time_zone text NOT NULL,
    division int DEFAULT 0 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    removed_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT house_budget_window UNIQUE (period),
    CONSTRAINT house_budget_period_name CHECK (period IN ('day', 'week', 'month', 'total')),
    CONSTRAINT house_budget_limit CHECK (limit_nano BETWEEN 0 AND 1000000000000000000),
    CONSTRAINT house_budget_removed CHECK (removed_at IS NULL OR limit_nano = 1000000000000000000),
    CONSTRAINT house_budget_enforcement CHECK (enforcement IN ('hard', 'soft')),
    CONSTRAINT house_budget_alert_percents
        CHECK (cardinality(alert_percents) <= 10 AND 1 <= ALL (alert_percents)
            AND 100 >= ALL (alert_percents)),
    CONSTRAINT house_budget_raise
        CHECK ((raised_to_nano IS NULL) = (raised_until IS NULL) AND raised_to_nano BETWEEN 0
            AND 1000000000000000000)
);
CREATE TABLE house_budget_period (
    shard smallint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    budget_id bigint NOT NULL REFERENCES house_budget (id) ON DELETE RESTRICT,
    period_start timestamptz NOT NULL,
    period_end timestamptz NOT NULL,
    ceiling_nano bigint DEFAULT 0 NOT NULL,
    spent_nano bigint DEFAULT 0 NOT NULL,
    held_nano bigint DEFAULT 0 NOT NULL,
    breach_nano bigint DEFAULT 0 NOT NULL,
    soft_nano bigint DEFAULT 0 NOT NULL,
    allotted_nano bigint,
    allotted_of_nano bigint,
    allotted_division int,
    alerted_percent smallint DEFAULT 0 NOT NULL,
    alerted_of_nano bigint DEFAULT 0 NOT NULL,
    exceeded_of_nano bigint,
    PRIMARY KEY (shard, id),
    CONSTRAINT house_budget_period_start UNIQUE (shard, budget_id, period_start),
    CONSTRAINT house_budget_period_not_negative CHECK (spent_nano >= 0 AND held_nano >= 0),
    CONSTRAINT house_budget_period_bounds CHECK (ceiling_nano >= 0 AND breach_nano >= 0),
    CONSTRAINT house_budget_period_shard CHECK (shard BETWEEN 0 AND 7),
    CONSTRAINT house_budget_period_allotted
        CHECK (allotted_nano >= 0 AND allotted_of_nano >= 0 AND soft_nano >= 0),
    CONSTRAINT house_budget_period_told CHECK (alerted_of_nano >= 0 AND exceeded_of_nano >= 0)
) WITH (fillfactor = 50);

INSERT INTO house_budget (
    id, period, limit_nano, enforcement, alert_percents, raised_to_nano, raised_until, time_zone,
    division, created_at, updated_at, removed_at
) OVERRIDING SYSTEM VALUE
SELECT id, period, limit_nano, enforcement, alert_percents, raised_to_nano, raised_until, time_zone,
    division, created_at, updated_at, removed_at
FROM budget WHERE tenant_id IS NULL;
INSERT INTO house_budget_period (
    shard, id, budget_id, period_start, period_end, ceiling_nano, spent_nano, held_nano, breach_nano,
    soft_nano, allotted_nano, allotted_of_nano, allotted_division, alerted_percent, alerted_of_nano,
    exceeded_of_nano
) OVERRIDING SYSTEM VALUE
SELECT shard, id, budget_id, period_start, period_end, ceiling_nano, spent_nano, held_nano,
    breach_nano, soft_nano, allotted_nano, allotted_of_nano, allotted_division, alerted_percent,
    alerted_of_nano, exceeded_of_nano
FROM budget_period WHERE tenant_id IS NULL;
SELECT setval(pg_get_serial_sequence('house_budget', 'id'), greatest(max(id), 1), max(id) > 0)
FROM house_budget;
SELECT setval(pg_get_serial_sequence('house_budget_period', 'id'), greatest(max(id), 1), max(id) > 0)
FROM house_budget_period;

ALTER TABLE reservation ADD COLUMN house_shard smallint, ADD COLUMN house_periods bigint[];
UPDATE reservation r SET
    house_shard = (
        SELECT min(h.shard) FROM house_budget_period h WHERE h.id = ANY (r.periods)),
    house_periods = ARRAY(
        SELECT h.id FROM house_budget_period h WHERE h.id = ANY (r.periods) ORDER BY h.id),
    periods = ARRAY(
        SELECT u.id FROM unnest(r.periods) AS u(id)
        WHERE u.id NOT IN (SELECT h.id FROM house_budget_period h) ORDER BY u.id)
WHERE r.periods && ARRAY(SELECT h.id FROM house_budget_period h);
ALTER TABLE reservation ADD CONSTRAINT reservation_house
    CHECK ((house_shard IS NULL) = (house_periods IS NULL));

DELETE FROM budget_period WHERE tenant_id IS NULL;
DELETE FROM budget WHERE tenant_id IS NULL;
ALTER TABLE budget_period
    DROP CONSTRAINT budget_period_budget_id_fkey,
    DROP CONSTRAINT budget_period_pkey,
    DROP CONSTRAINT budget_period_start,
    DROP CONSTRAINT budget_period_shard,
    DROP CONSTRAINT budget_period_allotted,
    DROP COLUMN shard,
    DROP COLUMN allotted_nano,
    DROP COLUMN allotted_of_nano,
    DROP COLUMN allotted_division,
    ALTER COLUMN tenant_id SET NOT NULL,
    ADD CONSTRAINT budget_period_soft CHECK (soft_nano >= 0),
    ADD CONSTRAINT budget_period_start UNIQUE (tenant_id, budget_id, period_start),
    ADD PRIMARY KEY (tenant_id, id);
ALTER TABLE budget
    DROP CONSTRAINT budget_pkey,
    DROP CONSTRAINT budget_house,
    DROP COLUMN time_zone,
    DROP COLUMN division,
    ALTER COLUMN tenant_id SET NOT NULL,
    ADD PRIMARY KEY (tenant_id, id);
ALTER TABLE budget_period ADD CONSTRAINT budget_period_own_budget
    FOREIGN KEY (tenant_id, budget_id) REFERENCES budget (tenant_id, id) ON DELETE RESTRICT;
"""

CLAIMS = """
-- The unique key does not begin with the tenant: in a small table Postgres would take it, rather than
-- the primary key, for a look-up by reservation, and keep that plan while the table grows.
CREATE TABLE idempotency_claim (
    tenant_id uuid NOT NULL,
    reservation_id uuid NOT NULL,
    user_id uuid,
    livemode boolean NOT NULL,
    operation text NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    answer jsonb,
    claimed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, reservation_id),
    CONSTRAINT idempotency_claim_owner
        UNIQUE NULLS NOT DISTINCT (key, tenant_id, operation, livemode, user_id),
    CONSTRAINT idempotency_claim_key CHECK (length(key) BETWEEN 1 AND 255)
) WITH (fillfactor = 70);
CREATE INDEX idempotency_claim_at ON idempotency_claim (claimed_at);
INSERT INTO idempotency_claim (
    tenant_id, reservation_id, user_id, livemode, operation, key, request_hash, answer, claimed_at
)
SELECT tenant_id, id, user_id, livemode, operation, idempotency_key,
    coalesce(request_hash, ''::bytea), answer, admitted_at
FROM reservation WHERE idempotency_key IS NOT NULL;
ALTER TABLE reservation
    DROP COLUMN idempotency_key,
    DROP COLUMN request_hash,
    DROP COLUMN answer;
"""

KEYS = """
ALTER TABLE ledger DROP CONSTRAINT ledger_reservation_id_fkey, DROP CONSTRAINT ledger_pkey;
ALTER TABLE image DROP CONSTRAINT image_reservation_id_fkey, DROP CONSTRAINT image_pkey;
DROP INDEX image_reservation, reservation_tenant;
ALTER TABLE reservation DROP CONSTRAINT reservation_pkey, ADD PRIMARY KEY (tenant_id, id);
-- Finds the tenant of a call's id, for operators and the journals of workers that are gone: lines are
-- only added, so that ids lie in the order of the table.
CREATE INDEX ledger_reservation ON ledger USING brin (reservation_id)
    WITH (pages_per_range = 32, autosummarize = on);
ALTER TABLE ledger
    ADD PRIMARY KEY (tenant_id, reservation_id, seq),
    ADD CONSTRAINT ledger_own_reservation FOREIGN KEY (tenant_id, reservation_id)
        REFERENCES reservation (tenant_id, id) ON DELETE RESTRICT;
ALTER TABLE image
    ADD PRIMARY KEY (tenant_id, id),
    ADD CONSTRAINT image_own_reservation FOREIGN KEY (tenant_id, reservation_id)
        REFERENCES reservation (tenant_id, id) ON DELETE RESTRICT;
CREATE INDEX image_reservation ON image (tenant_id, reservation_id);
-- Deferred, because the claim is made before its reservation.
ALTER TABLE idempotency_claim ADD CONSTRAINT idempotency_claim_own_reservation
    FOREIGN KEY (tenant_id, reservation_id) REFERENCES reservation (tenant_id, id)
    ON DELETE RESTRICT DEFERRABLE INITIALLY DEFERRED;

ALTER TABLE api_key DROP CONSTRAINT api_key_own_user;
ALTER TABLE credential DROP CONSTRAINT credential_own_user, DROP CONSTRAINT credential_pkey;
ALTER TABLE budget DROP CONSTRAINT budget_own_user, DROP CONSTRAINT budget_own_key;
ALTER TABLE rate_limit
    DROP CONSTRAINT rate_limit_own_user,
    DROP CONSTRAINT rate_limit_own_key,
    DROP CONSTRAINT rate_limit_pkey,
    ADD PRIMARY KEY (tenant_id, id);
ALTER TABLE tenant_user
    DROP CONSTRAINT tenant_user_pkey,
    DROP CONSTRAINT tenant_user_of_tenant,
    ADD PRIMARY KEY (tenant_id, id);
ALTER TABLE api_key
    DROP CONSTRAINT api_key_pkey,
    DROP CONSTRAINT api_key_of_tenant,
    ADD PRIMARY KEY (tenant_id, id),
    ADD CONSTRAINT api_key_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT;
ALTER TABLE credential
    ADD PRIMARY KEY (tenant_id, id),
    ADD CONSTRAINT credential_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT;
ALTER TABLE budget
    ADD CONSTRAINT budget_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    ADD CONSTRAINT budget_own_key FOREIGN KEY (tenant_id, api_key_id)
        REFERENCES api_key (tenant_id, id) ON DELETE RESTRICT;
ALTER TABLE rate_limit
    ADD CONSTRAINT rate_limit_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    ADD CONSTRAINT rate_limit_own_key FOREIGN KEY (tenant_id, api_key_id)
        REFERENCES api_key (tenant_id, id) ON DELETE RESTRICT;
ALTER TABLE image_spool
    DROP CONSTRAINT image_spool_pkey, ADD PRIMARY KEY (tenant_id, image_id);
ALTER TABLE image_cleanup DROP CONSTRAINT image_cleanup_pkey, ADD PRIMARY KEY (tenant_id, id);
-- An operator's command names a key or a user by its id alone.
CREATE INDEX api_key_id ON api_key (id);
CREATE INDEX tenant_user_id ON tenant_user (id);
"""

ACCESS = """
ALTER TABLE idempotency_claim ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_claim FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation ON idempotency_claim TO image_gateway_app USING (
    tenant_id = nullif(current_setting('gateway.tenant_id', true), '')::uuid);
CREATE POLICY owner ON idempotency_claim TO CURRENT_USER USING (true);
GRANT SELECT ON idempotency_claim TO image_gateway_app;
DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY['house_budget', 'house_budget_period'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', v_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', v_table);
        -- No policy for tenants: they see no row of it.
        EXECUTE format('CREATE POLICY owner ON %I TO CURRENT_USER USING (true)', v_table);
    END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE (limit_nano, updated_at, removed_at, enforcement, alert_percents,
    raised_to_nano, raised_until, time_zone) ON house_budget TO image_gateway_app;
GRANT SELECT ON house_budget_period TO image_gateway_app;
"""


def upgrade() -> None:
    """Move the operator's budgets and the claims to their tables, and put the tenant first."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    connection = op.get_bind()
    for script in (OUTDATED, TYPES, HOUSE, CLAIMS, KEYS, ACCESS):
        run_script(connection, script)
