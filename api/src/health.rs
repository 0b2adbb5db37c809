//! `/health`: liveness and readiness of the process and its database, for load balancers and
//! people. The routes need no authentication.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use peal_shared::context::{Context, is_migrated};
use serde::Serialize;
use sqlx::Connection as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::AppState;

/// Longest wait of a probe for the database.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);

pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(ready))
}

/// Check the process and its database
#[utoipa::path(
    get,
    path = "/health",
    tag = "Health",
    security(()),
    responses(
        (status = 200, body = HealthReport, example = json!({
            "status": "healthy", "timestamp": 1_781_000_000.25, "service": "peal-api",
            "database": "connected", "version": "0.1.0"
        })),
        (status = 503, body = HealthReport, description = "The database does not answer"),
    )
)]
async fn health(State(context): State<Arc<Context>>) -> Response {
    let connected = database_answers(&context).await;

    let body = HealthReport {
        status: if connected { "healthy" } else { "unhealthy" },
        timestamp: timestamp(&context),
        service: "peal-api",
        database: if connected {
            "connected"
        } else {
            "disconnected"
        },
        version: env!("CARGO_PKG_VERSION"),
    };

    (status_of(connected), Json(body)).into_response()
}

/// Check readiness for requests
///
/// A missing Redis does not affect readiness: workers find their work without it, later.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "Health",
    security(()),
    responses(
        (status = 200, body = ReadinessReport, example = json!({
            "status": "ready", "database": "connected", "migrations": "current", "redis": "connected",
            "database_role": "restricted", "stopping": false
        })),
        (status = 503, body = ReadinessReport, description = "Send requests elsewhere"),
    )
)]
async fn ready(
    State(context): State<Arc<Context>>,
    State(shutdown): State<CancellationToken>,
) -> Response {
    let (connected, redis) = tokio::join!(database_answers(&context), context.wakeups.ping());
    let migrated = connected
        && matches!(
            timeout(DATABASE_TIMEOUT, is_migrated(&context.callback_pool)).await,
            Ok(Ok(true))
        );

    let stopping = shutdown.is_cancelled();
    let is_ready = connected && migrated && context.unsafe_role.is_none() && !stopping;

    let body = ReadinessReport {
        status: if is_ready { "ready" } else { "not_ready" },
        database: if connected {
            "connected"
        } else {
            "disconnected"
        },
        migrations: if migrated { "current" } else { "pending" },
        redis: match redis {
            Some(true) => "connected",
            Some(false) => "disconnected",
            None => "not_configured",
        },
        database_role: context
            .unsafe_role
            .as_ref()
            .map_or("restricted", |breach| breach.reason),
        stopping,
    };

    (status_of(is_ready), Json(body)).into_response()
}

fn status_of(is_good: bool) -> StatusCode {
    if is_good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Pings the database on a connection of the callback pool: a process whose other connections are
/// all busy is healthy.
async fn database_answers(context: &Context) -> bool {
    let ping = async { context.callback_pool.acquire().await?.ping().await };
    matches!(timeout(DATABASE_TIMEOUT, ping).await, Ok(Ok(())))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds since 1970 fit a double"
)]
fn timestamp(context: &Context) -> f64 {
    context.clock.now().timestamp_millis() as f64 / 1000.0
}

#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthReport {
    status: &'static str,
    /// Seconds since 1970.
    timestamp: f64,
    service: &'static str,
    database: &'static str,
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Ready)]
struct ReadinessReport {
    status: &'static str,
    database: &'static str,
    migrations: &'static str,
    redis: &'static str,
    /// `restricted`, or the reason that row-level security does not bind this process: `superuser`,
    /// `bypasses row-level security`, `owns tables`.
    database_role: &'static str,
    stopping: bool,
}
