//! Asks a running kpng by its admin socket.

use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Question;

/// Asks the process that listens on `socket`, and gives the answer to `take`, piece by piece.
///
/// # Errors
/// When nobody is there, or the answer is that it cannot be answered, or it does not end.
pub async fn ask(
    socket: &Path,
    question: &Question,
    mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<StatusCode> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "cannot ask a running kpng at {}: start one, say --admin-socket if its socket is \
             elsewhere, or ask a file with --file",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("cannot talk to the running kpng")?;
    let connection = tokio::spawn(connection);
    let request = Request::get(question.path_and_query()).header(hyper::header::HOST, "kpng");
    let request = request.body(Empty::<Bytes>::new()).context("cannot ask so")?;
    let answer = sender.send_request(request).await.context("the running kpng gave no answer")?;
    let status = answer.status();
    let mut body = answer.into_body();
    let refused =
        !matches!(status, StatusCode::OK | StatusCode::CONFLICT | StatusCode::NOT_IMPLEMENTED);
    let mut problem = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the answer of the running kpng does not end")?;
        let Some(piece) = frame.data_ref() else { continue };
        if refused {
            problem.extend_from_slice(piece);
        } else {
            take(piece)?;
        }
    }
    connection.abort();
    if refused {
        bail!("{}", String::from_utf8_lossy(&problem).trim_end());
    }
    Ok(status)
}
