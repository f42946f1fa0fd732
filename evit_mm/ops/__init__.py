"""Operations on tensors that know no model."""
