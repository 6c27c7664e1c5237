"""The tables, as the spine needs them; functions and policies follow in the next revision."""

from alembic import op

revision = "2026_11_20_01_tables"
down_revision = None

TABLES = """
CREATE TABLE operator_key (
    id UUID NOT NULL,
    digest BYTEA NOT NULL,
    last4 TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    UNIQUE (digest)
);

CREATE TABLE price (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    model TEXT NOT NULL,
    effective_from TIMESTAMP WITH TIME ZONE NOT NULL,
    text_input_nano BIGINT NOT NULL,
    image_input_nano BIGINT NOT NULL,
    image_output_nano BIGINT NOT NULL,
    text_output_nano BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT price_version UNIQUE (model, effective_from),
    CONSTRAINT price_not_negative CHECK (text_input_nano >= 0 AND image_input_nano >= 0 AND image_output_nano >= 0 AND text_output_nano >= 0)
);

CREATE TABLE sealed_secret (
    name TEXT NOT NULL,
    sealed BYTEA NOT NULL,
    master_key_id TEXT NOT NULL,
    PRIMARY KEY (name)
);

CREATE TABLE tenant (
    id UUID NOT NULL,
    name TEXT NOT NULL,
    status TEXT DEFAULT 'active' NOT NULL,
    time_zone TEXT DEFAULT 'UTC' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT tenant_status CHECK (status IN ('active', 'suspended')),
    UNIQUE (name)
);

CREATE TABLE data_key (
    tenant_id UUID NOT NULL,
    version SMALLINT NOT NULL,
    wrapped BYTEA NOT NULL,
    master_key_id TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (tenant_id, version),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

CREATE TABLE reservation (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    livemode BOOLEAN NOT NULL,
    api_key_id UUID NOT NULL,
    user_id UUID,
    periods BIGINT[] NOT NULL,
    operation TEXT NOT NULL,
    requested_model TEXT NOT NULL,
    served_model TEXT NOT NULL,
    provider TEXT NOT NULL,
    credential TEXT NOT NULL,
    price_id BIGINT NOT NULL,
    held_nano BIGINT NOT NULL,
    state TEXT DEFAULT 'held' NOT NULL,
    final_nano BIGINT,
    outcome TEXT,
    instance UUID NOT NULL,
    admitted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    deadline_at TIMESTAMP WITH TIME ZONE NOT NULL,
    resolved_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT reservation_held CHECK (held_nano >= 0 AND held_nano <= 1000000000000000),
    CONSTRAINT reservation_state CHECK (state IN ('held', 'unknown', 'posted', 'posted_est', 'void')),
    CONSTRAINT reservation_final CHECK ((state IN ('held', 'unknown')) = (final_nano IS NULL)),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT,
    FOREIGN KEY(price_id) REFERENCES price (id) ON DELETE RESTRICT
)
 WITH (fillfactor = 80);
CREATE INDEX reservation_open ON reservation (deadline_at) WHERE state IN ('held', 'unknown');
CREATE INDEX reservation_tenant ON reservation (tenant_id, admitted_at);

CREATE TABLE tenant_user (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT tenant_user_name UNIQUE (tenant_id, name),
    CONSTRAINT tenant_user_of_tenant UNIQUE (tenant_id, id),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

CREATE TABLE api_key (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    user_id UUID,
    root_id UUID NOT NULL,
    digest BYTEA NOT NULL,
    last4 TEXT NOT NULL,
    livemode BOOLEAN NOT NULL,
    scopes TEXT[] NOT NULL,
    models TEXT[],
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT api_key_of_tenant UNIQUE (tenant_id, id),
    CONSTRAINT api_key_own_user FOREIGN KEY(tenant_id, user_id) REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT,
    UNIQUE (digest)
);
CREATE INDEX api_key_tenant ON api_key (tenant_id, created_at);

CREATE TABLE credential (
    id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    user_id UUID,
    provider TEXT NOT NULL,
    version INTEGER NOT NULL,
    data_key_version SMALLINT NOT NULL,
    sealed BYTEA NOT NULL,
    last4 TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT credential_owner UNIQUE NULLS NOT DISTINCT (tenant_id, user_id, provider),
    CONSTRAINT credential_own_user FOREIGN KEY(tenant_id, user_id) REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

CREATE TABLE image (
    id TEXT NOT NULL,
    tenant_id UUID NOT NULL,
    livemode BOOLEAN NOT NULL,
    reservation_id UUID NOT NULL,
    path TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    FOREIGN KEY(reservation_id) REFERENCES reservation (id) ON DELETE RESTRICT
);
CREATE INDEX image_expiry ON image (expires_at) WHERE deleted_at IS NULL;
CREATE INDEX image_reservation ON image (reservation_id);
CREATE INDEX image_tenant ON image (tenant_id, livemode, created_at);

CREATE TABLE ledger (
    reservation_id UUID NOT NULL,
    seq SMALLINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant_id UUID NOT NULL,
    livemode BOOLEAN NOT NULL,
    api_key_id UUID NOT NULL,
    user_id UUID,
    requested_model TEXT NOT NULL,
    served_model TEXT NOT NULL,
    kind TEXT NOT NULL,
    amount_nano BIGINT NOT NULL,
    requests INTEGER NOT NULL,
    images INTEGER NOT NULL,
    text_input_tokens BIGINT NOT NULL,
    image_input_tokens BIGINT NOT NULL,
    text_output_tokens BIGINT NOT NULL,
    image_output_tokens BIGINT NOT NULL,
    PRIMARY KEY (reservation_id, seq),
    CONSTRAINT ledger_kind CHECK (kind IN ('hold', 'post', 'post_est', 'void', 'adjust')),
    FOREIGN KEY(reservation_id) REFERENCES reservation (id) ON DELETE RESTRICT
);
CREATE INDEX ledger_report ON ledger (tenant_id, livemode, at) WHERE kind <> 'hold';

CREATE TABLE budget (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant_id UUID NOT NULL,
    api_key_id UUID,
    user_id UUID,
    livemode BOOLEAN NOT NULL,
    period TEXT NOT NULL,
    limit_nano BIGINT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT budget_owner UNIQUE NULLS NOT DISTINCT (tenant_id, api_key_id, user_id, livemode, period),
    CONSTRAINT budget_own_user FOREIGN KEY(tenant_id, user_id) REFERENCES tenant_user (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT budget_own_key FOREIGN KEY(tenant_id, api_key_id) REFERENCES api_key (tenant_id, id) ON DELETE RESTRICT,
    CONSTRAINT budget_period_name CHECK (period IN ('day', 'week', 'month', 'total')),
    CONSTRAINT budget_limit CHECK (limit_nano BETWEEN 0 AND 1000000000000000000),
    CONSTRAINT budget_one_owner CHECK (api_key_id IS NULL OR user_id IS NULL),
    FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE RESTRICT
);

CREATE TABLE budget_period (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    budget_id BIGINT NOT NULL,
    tenant_id UUID NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    ceiling_nano BIGINT DEFAULT '0' NOT NULL,
    spent_nano BIGINT DEFAULT '0' NOT NULL,
    held_nano BIGINT DEFAULT '0' NOT NULL,
    breach_nano BIGINT DEFAULT '0' NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT budget_period_start UNIQUE (budget_id, period_start),
    CONSTRAINT budget_period_not_negative CHECK (spent_nano >= 0 AND held_nano >= 0),
    FOREIGN KEY(budget_id) REFERENCES budget (id) ON DELETE RESTRICT
)
 WITH (fillfactor = 50);

"""


def upgrade() -> None:
    """Create every table and index."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for statement in TABLES.split(";"):
        if statement.strip():
            op.execute(statement)
