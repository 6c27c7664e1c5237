-- The first schema: tables, indexes, the serving role and its rights.
--
-- Functions, triggers and views are in the package, in `*/sql/*.sql`, and are applied after the
-- migrations (gateway/db/sql_files.py). From here on, a change of the tables is a migration.

-- ------------------------------------------------------------------------------------------------
-- Tenants, users and their keys
-- ------------------------------------------------------------------------------------------------

-- The paying customer, owner of everything below.
CREATE TABLE tenant (
    id uuid NOT NULL,
    name text NOT NULL,
    status text DEFAULT 'active' NOT NULL,
    time_zone text DEFAULT 'UTC' NOT NULL,
    continuity boolean DEFAULT true NOT NULL,
    stores_prompts boolean DEFAULT false NOT NULL,
    image_retention_seconds int,
    max_image_bytes bigint,
    created_at timestamptz DEFAULT now() NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT tenant_status CHECK (status IN ('active', 'suspended', 'deleted')),
    CONSTRAINT tenant_deleted CHECK ((status = 'deleted') = (deleted_at IS NOT NULL)),
    CONSTRAINT tenant_image_retention CHECK (image_retention_seconds BETWEEN 60 AND 315360000),
    CONSTRAINT tenant_max_image_bytes CHECK (max_image_bytes >= 0),
    UNIQUE (name)
);
CREATE INDEX tenant_erased ON tenant (deleted_at) WHERE deleted_at IS NOT NULL;

-- A person or application of a tenant.
CREATE TABLE tenant_user (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    name text NOT NULL,
    status text DEFAULT 'active' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT tenant_user_name UNIQUE (tenant_id, name),
    CONSTRAINT tenant_user_of_tenant UNIQUE (tenant_id, id),
    CONSTRAINT tenant_user_status CHECK (status IN ('active', 'disabled', 'deleted')),
    CONSTRAINT tenant_user_deleted CHECK ((status = 'deleted') = (deleted_at IS NOT NULL)),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);
CREATE INDEX tenant_user_erased ON tenant_user (deleted_at) WHERE deleted_at IS NOT NULL;

-- An API key, as a digest. A rolled key is a further row with the same root_id.
CREATE TABLE api_key (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    user_id uuid,
    root_id uuid NOT NULL,
    name text,
    digest bytea NOT NULL,
    pepper_version smallint DEFAULT 1 NOT NULL,
    last4 text NOT NULL,
    livemode boolean NOT NULL,
    scopes text[] NOT NULL,
    models text[],
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT api_key_of_tenant UNIQUE (tenant_id, id),
    CONSTRAINT api_key_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT,
    UNIQUE (digest)
);
CREATE INDEX api_key_tenant ON api_key (tenant_id, created_at);

-- An admin key, as a digest.
CREATE TABLE operator_key (
    id uuid NOT NULL,
    name text DEFAULT '' NOT NULL,
    scopes text[] DEFAULT '{admin}' NOT NULL,
    origin text,
    digest bytea NOT NULL,
    pepper_version smallint DEFAULT 1 NOT NULL,
    last4 text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT operator_key_scopes
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['admin', 'admin:read', 'metrics']),
    CONSTRAINT operator_key_origin CHECK (origin IN ('first_start', 'setting', 'command', 'rest')),
    UNIQUE (digest)
);

-- ------------------------------------------------------------------------------------------------
-- Secrets, sealed by the master key or by a tenant's data key
-- ------------------------------------------------------------------------------------------------

-- The gateway's own secrets (peppers, link keys), sealed by the master key.
CREATE TABLE sealed_secret (
    name text NOT NULL,
    sealed bytea NOT NULL,
    master_key_id text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    used_from timestamptz DEFAULT now() NOT NULL,
    accepted_until timestamptz,
    PRIMARY KEY (name)
);

-- A tenant's data keys, wrapped by the master key.
CREATE TABLE data_key (
    tenant_id uuid NOT NULL,
    version smallint NOT NULL,
    wrapped bytea NOT NULL,
    master_key_id text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (tenant_id, version),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

-- A tenant's or user's credential for a provider, sealed by the tenant's data key.
CREATE TABLE credential (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    user_id uuid,
    provider text NOT NULL,
    version int NOT NULL,
    data_key_version smallint NOT NULL,
    sealed bytea NOT NULL,
    last4 text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    tested_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT credential_owner UNIQUE NULLS NOT DISTINCT (tenant_id, user_id, provider),
    CONSTRAINT credential_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

-- Rotations of data keys, so that one that was interrupted is resumed.
CREATE TABLE key_rotation (
    id uuid NOT NULL,
    started_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (id)
);

-- ------------------------------------------------------------------------------------------------
-- Prices, budgets and limits
-- ------------------------------------------------------------------------------------------------

-- Versions of the list prices, in nano-dollars per token or image. Append-only.
CREATE TABLE price (
    id bigint GENERATED ALWAYS AS IDENTITY,
    model text NOT NULL,
    effective_from timestamptz NOT NULL,
    text_input_nano bigint NOT NULL,
    image_input_nano bigint NOT NULL,
    image_output_nano bigint NOT NULL,
    text_output_nano bigint NOT NULL,
    per_image_nano bigint DEFAULT 0 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT price_version UNIQUE (model, effective_from),
    CONSTRAINT price_not_negative
        CHECK (text_input_nano >= 0 AND image_input_nano >= 0 AND image_output_nano >= 0
            AND text_output_nano >= 0),
    CONSTRAINT price_per_image_not_negative CHECK (per_image_nano >= 0),
    CONSTRAINT price_bounded
        CHECK (greatest(text_input_nano, image_input_nano, image_output_nano, text_output_nano,
            per_image_nano) <= 10000000000000)
);

-- Money limits of owners per period. Without tenant_id: the operator's, over all tenants.
CREATE TABLE budget (
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id uuid,
    api_key_id uuid,
    user_id uuid,
    livemode boolean NOT NULL,
    period text NOT NULL,
    limit_nano bigint NOT NULL,
    enforcement text DEFAULT 'hard' NOT NULL,
    alert_percents smallint[] DEFAULT '{50,80,100}' NOT NULL,
    raised_to_nano bigint,
    raised_until timestamptz,
    time_zone text,
    division int DEFAULT 0 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    removed_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT budget_owner
        UNIQUE NULLS NOT DISTINCT (tenant_id, api_key_id, user_id, livemode, period),
    CONSTRAINT budget_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT budget_own_key FOREIGN KEY (tenant_id, api_key_id)
        REFERENCES api_key (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT budget_period_name CHECK (period IN ('day', 'week', 'month', 'total')),
    CONSTRAINT budget_limit CHECK (limit_nano BETWEEN 0 AND 1000000000000000000),
    CONSTRAINT budget_one_owner CHECK (api_key_id IS NULL OR user_id IS NULL),
    CONSTRAINT budget_removed CHECK (removed_at IS NULL OR limit_nano = 1000000000000000000),
    CONSTRAINT budget_enforcement CHECK (enforcement IN ('hard', 'soft')),
    CONSTRAINT budget_alert_percents
        CHECK (cardinality(alert_percents) <= 10 AND 1 <= ALL (alert_percents)
            AND 100 >= ALL (alert_percents)),
    CONSTRAINT budget_raise
        CHECK ((raised_to_nano IS NULL) = (raised_until IS NULL) AND raised_to_nano BETWEEN 0
            AND 1000000000000000000),
    CONSTRAINT budget_house
        CHECK ((tenant_id IS NULL) = (time_zone IS NOT NULL) AND (tenant_id IS NOT NULL
            OR (api_key_id IS NULL AND user_id IS NULL AND livemode))),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

-- The spent and held amounts of one period of a budget; updated with each call, so its pages
-- keep room for new row versions (HOT updates).
CREATE TABLE budget_period (
    id bigint GENERATED ALWAYS AS IDENTITY,
    budget_id bigint NOT NULL,
    tenant_id uuid,
    shard smallint DEFAULT 0 NOT NULL,
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
    PRIMARY KEY (id),
    CONSTRAINT budget_period_start UNIQUE (budget_id, period_start, shard),
    CONSTRAINT budget_period_not_negative CHECK (spent_nano >= 0 AND held_nano >= 0),
    CONSTRAINT budget_period_bounds CHECK (ceiling_nano >= 0 AND breach_nano >= 0),
    CONSTRAINT budget_period_shard CHECK (shard = 0 OR tenant_id IS NULL),
    CONSTRAINT budget_period_allotted
        CHECK (allotted_nano >= 0 AND allotted_of_nano >= 0 AND soft_nano >= 0),
    CONSTRAINT budget_period_told CHECK (alerted_of_nano >= 0 AND exceeded_of_nano >= 0),
    FOREIGN KEY (budget_id) REFERENCES budget (id) ON DELETE RESTRICT
) WITH (fillfactor = 50);

-- Requests, images or concurrent calls per owner.
CREATE TABLE rate_limit (
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id uuid NOT NULL,
    api_key_id uuid,
    user_id uuid,
    livemode boolean NOT NULL,
    kind text NOT NULL,
    value bigint NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT rate_limit_owner
        UNIQUE NULLS NOT DISTINCT (tenant_id, api_key_id, user_id, livemode, kind),
    CONSTRAINT rate_limit_own_user FOREIGN KEY (tenant_id, user_id)
        REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT rate_limit_own_key FOREIGN KEY (tenant_id, api_key_id)
        REFERENCES api_key (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT rate_limit_kind CHECK (kind IN ('requests', 'images', 'concurrent')),
    CONSTRAINT rate_limit_value CHECK (value BETWEEN 0 AND 1000000000),
    CONSTRAINT rate_limit_one_owner CHECK (api_key_id IS NULL OR user_id IS NULL),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

-- ------------------------------------------------------------------------------------------------
-- Money: reservations, the ledger, and what was paid for
-- ------------------------------------------------------------------------------------------------

-- One paid call: the held amount and the outcome. `periods` are the rows of budget_period
-- that it counts in.
CREATE TABLE reservation (
    id uuid NOT NULL,
    tenant_id uuid NOT NULL,
    livemode boolean NOT NULL,
    api_key_id uuid,
    user_id uuid,
    periods bigint[] NOT NULL,
    operation text NOT NULL,
    requested_model text NOT NULL,
    served_model text NOT NULL,
    provider text NOT NULL,
    credential text NOT NULL,
    price_id bigint NOT NULL,
    held_nano bigint NOT NULL,
    state text DEFAULT 'held' NOT NULL,
    final_nano bigint,
    outcome text,
    instance uuid NOT NULL,
    admitted_at timestamptz NOT NULL,
    deadline_at timestamptz NOT NULL,
    resolved_at timestamptz,
    idempotency_key text,
    request_hash bytea,
    answer jsonb,
    terms jsonb,
    served_quality text,
    served_size text,
    PRIMARY KEY (id),
    CONSTRAINT reservation_held CHECK (held_nano >= 0 AND held_nano <= 1000000000000000),
    CONSTRAINT reservation_state
        CHECK (state IN ('held', 'unknown', 'posted', 'posted_est', 'void')),
    CONSTRAINT reservation_final CHECK ((state IN ('held', 'unknown')) = (final_nano IS NULL)),
    CONSTRAINT reservation_final_not_negative CHECK (final_nano >= 0),
    CONSTRAINT reservation_served
        CHECK (length(served_quality) <= 20 AND length(served_size) <= 20),
    CONSTRAINT reservation_idempotency_key CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT,
    FOREIGN KEY (price_id) REFERENCES price (id) ON DELETE RESTRICT
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX reservation_claim ON reservation
    (tenant_id, idempotency_key, operation, livemode, user_id) NULLS NOT DISTINCT
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX reservation_claimed_at ON reservation (admitted_at) WHERE idempotency_key IS NOT NULL;
CREATE INDEX reservation_estimated ON reservation (id) WHERE state = 'posted_est';
CREATE INDEX reservation_open ON reservation (deadline_at) WHERE state IN ('held', 'unknown');
CREATE INDEX reservation_served ON reservation (served_model, operation, livemode, id)
    INCLUDE (served_quality, served_size)
    WHERE state = 'posted' AND served_quality IS NOT NULL AND served_size IS NOT NULL;
CREATE INDEX reservation_tenant ON reservation (tenant_id, admitted_at);

-- Immutable postings. Line 0 of a reservation is its hold, the last one its outcome.
CREATE TABLE ledger (
    reservation_id uuid NOT NULL,
    seq smallint NOT NULL,
    at timestamptz NOT NULL,
    admitted_at timestamptz,
    tenant_id uuid NOT NULL,
    livemode boolean NOT NULL,
    api_key_id uuid,
    user_id uuid,
    requested_model text NOT NULL,
    served_model text NOT NULL,
    kind text NOT NULL,
    amount_nano bigint NOT NULL,
    requests int NOT NULL,
    images int NOT NULL,
    text_input_tokens bigint NOT NULL,
    image_input_tokens bigint NOT NULL,
    text_output_tokens bigint NOT NULL,
    image_output_tokens bigint NOT NULL,
    PRIMARY KEY (reservation_id, seq),
    CONSTRAINT ledger_kind CHECK (kind IN ('hold', 'post', 'post_est', 'void', 'adjust')),
    CONSTRAINT ledger_amount CHECK (amount_nano >= 0 OR kind = 'adjust'),
    FOREIGN KEY (reservation_id) REFERENCES reservation (id) ON DELETE RESTRICT
);
CREATE INDEX ledger_report ON ledger (tenant_id, livemode, coalesce(admitted_at, at))
    WHERE kind <> 'hold';

-- One stored image. Rows stay after the image is deleted.
CREATE TABLE image (
    id text NOT NULL,
    tenant_id uuid NOT NULL,
    livemode boolean NOT NULL,
    user_id uuid,
    reservation_id uuid NOT NULL,
    path text NOT NULL,
    media_type text NOT NULL,
    size_bytes bigint NOT NULL,
    width int,
    height int,
    prompt text,
    prompt_hash bytea,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (id),
    FOREIGN KEY (reservation_id) REFERENCES reservation (id) ON DELETE RESTRICT
);
CREATE INDEX image_expiry ON image (expires_at) WHERE deleted_at IS NULL;
CREATE INDEX image_history ON image (tenant_id, livemode, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX image_reservation ON image (reservation_id);
CREATE INDEX image_user_history ON image (tenant_id, user_id, livemode, created_at, id)
    WHERE deleted_at IS NULL AND user_id IS NOT NULL;

-- Paid images that the store has not taken yet, sealed. Compression of ciphertext is futile.
CREATE TABLE image_spool (
    image_id text NOT NULL,
    tenant_id uuid NOT NULL,
    path text NOT NULL,
    data_key_version smallint NOT NULL,
    sealed bytea NOT NULL,
    size_bytes bigint NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    attempts int DEFAULT 0 NOT NULL,
    next_attempt_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (image_id),
    CONSTRAINT image_spool_size CHECK (size_bytes > 0),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);
CREATE INDEX image_spool_due ON image_spool (next_attempt_at);
ALTER TABLE image_spool ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- The last clean-up of a tenant's images.
CREATE TABLE image_cleanup (
    id bigint GENERATED ALWAYS AS IDENTITY,
    tenant_id uuid NOT NULL,
    livemode boolean NOT NULL,
    user_id uuid,
    cleaned_at timestamptz NOT NULL,
    images int NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT image_cleanup_owner UNIQUE NULLS NOT DISTINCT (tenant_id, livemode, user_id),
    CONSTRAINT image_cleanup_images CHECK (images > 0),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

-- ------------------------------------------------------------------------------------------------
-- Events and webhooks
-- ------------------------------------------------------------------------------------------------

-- Events for webhooks.
CREATE TABLE event (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    tenant_id uuid,
    livemode boolean NOT NULL,
    type text NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    data jsonb NOT NULL,
    announced_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT event_of_tenant UNIQUE (tenant_id, id),
    CONSTRAINT event_type CHECK (type <> ''),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);
CREATE INDEX event_announced ON event (announced_at) WHERE announced_at IS NOT NULL;
CREATE INDEX event_waiting ON event (created_at) WHERE announced_at IS NULL;

-- Receivers of events. Without tenant_id: the operator's.
CREATE TABLE webhook_endpoint (
    id uuid NOT NULL,
    tenant_id uuid,
    url text NOT NULL,
    event_types text[],
    livemode boolean,
    description text DEFAULT '' NOT NULL,
    disabled_at timestamptz,
    disabled_reason text,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT webhook_endpoint_of_tenant UNIQUE (tenant_id, id),
    CONSTRAINT webhook_endpoint_url CHECK (url ~* '^https?://' AND length(url) <= 8192),
    CONSTRAINT webhook_endpoint_event_types CHECK (cardinality(event_types) > 0),
    CONSTRAINT webhook_endpoint_disabled CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CONSTRAINT webhook_endpoint_disabled_reason CHECK (disabled_reason IN ('operator', 'gone')),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

-- Signing secrets of endpoints; several while one is rolled.
CREATE TABLE webhook_secret (
    id uuid NOT NULL,
    tenant_id uuid,
    endpoint_id uuid NOT NULL,
    data_key_version smallint,
    sealed bytea NOT NULL,
    valid_until timestamptz,
    created_at timestamptz DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT webhook_secret_own_endpoint FOREIGN KEY (tenant_id, endpoint_id)
        REFERENCES webhook_endpoint (tenant_id, id) ON DELETE CASCADE,
    CONSTRAINT webhook_secret_key CHECK ((tenant_id IS NULL) = (data_key_version IS NULL)),
    FOREIGN KEY (endpoint_id) REFERENCES webhook_endpoint (id) ON DELETE CASCADE
);
CREATE INDEX webhook_secret_endpoint ON webhook_secret (endpoint_id);

-- One event for one endpoint.
CREATE TABLE webhook_delivery (
    id uuid NOT NULL,
    tenant_id uuid,
    endpoint_id uuid NOT NULL,
    event_id uuid NOT NULL,
    status text DEFAULT 'pending' NOT NULL,
    attempts int DEFAULT 0 NOT NULL,
    next_attempt_at timestamptz DEFAULT now(),
    last_status int,
    last_error text,
    created_at timestamptz DEFAULT now() NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT webhook_delivery_once UNIQUE (event_id, endpoint_id),
    CONSTRAINT webhook_delivery_own_endpoint FOREIGN KEY (tenant_id, endpoint_id)
        REFERENCES webhook_endpoint (tenant_id, id) ON DELETE CASCADE,
    CONSTRAINT webhook_delivery_own_event FOREIGN KEY (tenant_id, event_id)
        REFERENCES event (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT webhook_delivery_status CHECK (status IN ('pending', 'delivered', 'dead')),
    CONSTRAINT webhook_delivery_pending
        CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT webhook_delivery_finished CHECK ((status = 'pending') = (finished_at IS NULL)),
    FOREIGN KEY (endpoint_id) REFERENCES webhook_endpoint (id) ON DELETE CASCADE,
    FOREIGN KEY (event_id) REFERENCES event (id) ON DELETE RESTRICT
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (endpoint_id, next_attempt_at)
    WHERE status = 'pending';
CREATE INDEX webhook_delivery_history ON webhook_delivery (endpoint_id, id);
CREATE INDEX webhook_delivery_old ON webhook_delivery (finished_at) WHERE status <> 'pending';

-- ------------------------------------------------------------------------------------------------
-- Records: the audit trail, the request log, periodic work
-- ------------------------------------------------------------------------------------------------

-- The audit trail. Append-only.
CREATE TABLE audit (
    id uuid NOT NULL,
    at timestamptz DEFAULT clock_timestamp() NOT NULL,
    actor_type text NOT NULL,
    actor_id text NOT NULL,
    actor_name text,
    request_id text,
    action text NOT NULL,
    tenant_id uuid,
    object_id text NOT NULL,
    before jsonb,
    after jsonb,
    PRIMARY KEY (id)
);
CREATE INDEX audit_at ON audit (at, id);
CREATE INDEX audit_tenant ON audit (tenant_id, at, id);

-- One row per request, in a partition per day.
CREATE TABLE request_log (
    at timestamptz NOT NULL,
    id text NOT NULL,
    tenant_id uuid,
    livemode boolean,
    api_key_id uuid,
    user_id uuid,
    operator_key_id uuid,
    client_request_id text,
    trace_id text,
    method text NOT NULL,
    route text NOT NULL,
    tool text,
    status smallint NOT NULL,
    error_code text,
    error_param text,
    reason text,
    requested_model text,
    served_model text,
    generation_id uuid,
    replayed boolean,
    provider text,
    credential text,
    provider_status smallint,
    provider_request_id text,
    provider_milliseconds bigint,
    cost_nano bigint,
    cost_status text,
    milliseconds bigint NOT NULL,
    PRIMARY KEY (at, id),
    CONSTRAINT request_log_cost_not_negative CHECK (cost_nano >= 0)
) PARTITION BY RANGE (at);
CREATE INDEX request_log_client_request_id ON request_log (client_request_id)
    WHERE client_request_id IS NOT NULL;
CREATE INDEX request_log_generation ON request_log (generation_id) WHERE generation_id IS NOT NULL;
CREATE INDEX request_log_tenant ON request_log (tenant_id, livemode, at, id);

-- Periodic work and its next due time.
CREATE TABLE sweep (
    name text NOT NULL,
    due_at timestamptz DEFAULT now() NOT NULL,
    store_mark text,
    store_since timestamptz,
    PRIMARY KEY (name)
);

-- ------------------------------------------------------------------------------------------------
-- The serving role: owns nothing, sees one tenant's rows at a time, and never writes money itself
-- ------------------------------------------------------------------------------------------------

-- Roles belong to the whole server, so another database's migration may have created it already.
DO $$ BEGIN
    CREATE ROLE image_gateway_app NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

-- Lets the owner's own address serve as this role (SET ROLE).
GRANT image_gateway_app TO CURRENT_USER;
GRANT USAGE ON SCHEMA public TO image_gateway_app;

-- Row-level security, for the owner too: a transaction sees the rows of the tenant that it set,
-- all rows as the operator, and nothing if it set neither. The money functions run as the
-- owner, for many tenants in one commit.
DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY[
        'tenant', 'tenant_user', 'api_key', 'data_key', 'credential', 'budget', 'budget_period',
        'rate_limit', 'reservation', 'ledger', 'image', 'image_spool', 'image_cleanup', 'event',
        'webhook_endpoint', 'webhook_secret', 'webhook_delivery', 'audit', 'request_log'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', v_table);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', v_table);
        EXECUTE format(
            'CREATE POLICY tenant_isolation ON %I TO image_gateway_app USING ('
            '%I = nullif(current_setting(''gateway.tenant_id'', true), '''')::uuid'
            ' OR current_setting(''gateway.operator'', true) = ''on'')',
            v_table, CASE v_table WHEN 'tenant' THEN 'id' ELSE 'tenant_id' END);
        EXECUTE format('CREATE POLICY owner ON %I TO CURRENT_USER USING (true)', v_table);
    END LOOP;
END $$;

-- No UPDATE, DELETE or TRUNCATE on money: only its functions write it.
GRANT SELECT, INSERT, UPDATE (name, status, time_zone, continuity, stores_prompts,
    image_retention_seconds, max_image_bytes, deleted_at) ON tenant TO image_gateway_app;
GRANT SELECT, INSERT, UPDATE (name, status, deleted_at) ON tenant_user TO image_gateway_app;
GRANT SELECT, INSERT, UPDATE (expires_at, revoked_at, name) ON api_key TO image_gateway_app;
GRANT SELECT, INSERT, UPDATE (revoked_at, name, origin, expires_at, last_used_at) ON operator_key
    TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (sealed, master_key_id, used_from, accepted_until) ON
    sealed_secret TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (wrapped, master_key_id) ON data_key TO image_gateway_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON credential TO image_gateway_app;
GRANT SELECT, INSERT, UPDATE (finished_at) ON key_rotation TO image_gateway_app;
GRANT SELECT, INSERT ON price TO image_gateway_app;
GRANT SELECT, INSERT, UPDATE (limit_nano, updated_at, removed_at, enforcement, alert_percents,
    raised_to_nano, raised_until, time_zone) ON budget TO image_gateway_app;
GRANT SELECT ON budget_period TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (value, updated_at) ON rate_limit TO image_gateway_app;
GRANT SELECT ON reservation TO image_gateway_app;
GRANT SELECT ON ledger TO image_gateway_app;
GRANT SELECT, UPDATE (expires_at, deleted_at, prompt, prompt_hash) ON image TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (attempts, next_attempt_at) ON image_spool TO
    image_gateway_app;
GRANT SELECT, INSERT, UPDATE (cleaned_at, images) ON image_cleanup TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (announced_at) ON event TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (url, event_types, livemode, description, disabled_at,
    disabled_reason, updated_at) ON webhook_endpoint TO image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (data_key_version, sealed, valid_until) ON webhook_secret TO
    image_gateway_app;
GRANT SELECT, INSERT, DELETE, UPDATE (status, attempts, next_attempt_at, last_status, last_error,
    finished_at) ON webhook_delivery TO image_gateway_app;
GRANT SELECT, INSERT (id, actor_type, actor_id, request_id, action, tenant_id, object_id, before,
    after, actor_name) ON audit TO image_gateway_app;
GRANT SELECT ON request_log TO image_gateway_app;
GRANT SELECT, UPDATE (due_at, store_mark, store_since) ON sweep TO image_gateway_app;
GRANT SELECT ON alembic_version TO image_gateway_app;

-- Periodic work, which the sweepers of all gateways share.
INSERT INTO sweep (name) VALUES
    ('byte_caps'), ('orphans'), ('webhooks'), ('erasures'), ('secrets'), ('request_log');
