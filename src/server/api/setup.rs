//! From the configuration to the port: limits, options, listeners and what each answers.

use std::io;

use crate::common::urls::Urls;
use crate::server::api::backend::Limits;
use crate::server::api::http::Access;
use crate::server::api::listener::Listener;
use crate::server::api::listener::Reuse;
use crate::server::api::server::Role;
use crate::server::api::server::ServeOptions;
use crate::server::api::server::connections_max;
use crate::server::config::Config;

/// The limits of requests that the configuration sets.
pub fn limits(config: &Config) -> Limits {
    Limits {
        request_bytes_max: config.max_request_bytes,
        txn_ops_max: config.max_txn_ops,
        quota_backend_bytes: config.quota_backend_bytes,
        request_timeout: config.request_timeout(),
        election_timeout: config.election_timeout,
        slow_request: config.warning_unary_request,
    }
}

/// How the port is served. An error when the process may not open enough files.
pub fn serve_options(config: &Config) -> Result<ServeOptions, String> {
    Ok(ServeOptions {
        access: Access { hosts: config.host_whitelist.clone(), origins: config.cors.clone() },
        streams_max: config.max_concurrent_streams,
        keepalive_interval: config.grpc_keepalive_interval,
        keepalive_timeout: config.grpc_keepalive_timeout,
        connections_max: connections_max()?,
        extensive_metrics: config.extensive_metrics,
    })
}

/// Binds every client and metrics URL. Metrics listeners may be served at once, the others once the member is published.
pub async fn bind(config: &Config) -> Result<Vec<(Listener, Role)>, io::Error> {
    let reuse = Reuse { port: config.reuse_port, address: config.reuse_address };
    let split = !config.listen_client_http_urls.is_empty();
    let kinds: [(&Urls, Role); 3] = [
        (&config.listen_client_urls, if split { Role::GrpcOnly } else { Role::Client }),
        (&config.listen_client_http_urls, Role::HttpOnly),
        (&config.listen_metrics_urls, Role::Metrics),
    ];
    let mut listeners = Vec::new();
    for (urls, role) in kinds {
        let mut bound = Vec::new();
        for url in urls {
            // The same URL twice is one listener.
            if !bound.contains(&url) {
                listeners.push((Listener::bind(url, reuse).await?, role));
                bound.push(url);
            }
        }
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::config::Personality;
    use std::ffi::OsString;

    #[tokio::test]
    async fn listeners_answer_what_the_flags_say() {
        let check = async |words: &[&str], expected: &[Role]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let config = Config::from_args(&words, std::iter::empty(), Personality::Etcd).expect("valid");
            let roles: Vec<Role> = bind(&config).await.expect("binds").into_iter().map(|(_, role)| role).collect();
            assert_eq!(roles, expected);
        };
        let any = "http://127.0.0.1:0";
        let client = ["--listen-client-urls", "http://127.0.0.1:0,http://127.0.0.1:0", "--advertise-client-urls", any];
        check(&client, &[Role::Client]).await;
        check(&[&client[..], &["--listen-metrics-urls", any]].concat(), &[Role::Client, Role::Metrics]).await;
        let http = ["--listen-client-http-urls", "http://localhost:0"];
        check(&[&client[..], &http].concat(), &[Role::GrpcOnly, Role::HttpOnly]).await;
    }

    #[test]
    fn limits_and_options_follow_the_configuration() {
        let words = ["--max-txn-ops=7", "--election-timeout=2000", "--grpc-keepalive-timeout=0s"].map(OsString::from);
        let config = Config::from_args(&words, std::iter::empty(), Personality::Etcd).expect("valid");
        assert_eq!((limits(&config).txn_ops_max, limits(&config).request_timeout.as_secs()), (7, 9));
        let options = serve_options(&config).expect("enough files");
        assert_eq!(options.keepalive_interval, None);
        assert!(options.access.hosts.contains("*"));
    }
}
